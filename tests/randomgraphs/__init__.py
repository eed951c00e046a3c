"""Random computation graphs and their brute-force moments: a reference that shares nothing with
varflow's engine.

``generate`` makes seeded graphs as plain data, ``brute`` measures them in PyTorch with autograd,
``run`` writes ``results/n1024.json`` (60 graphs) and ``results/n256.json`` (every third of them).
Nothing here reads the engine, and reading the results needs neither torch nor a simulation.

How to compare::

    from .generate import load_results, to_networkx

    for record in load_results(1024):
        net = vf.Network.from_networkx(to_networkx(record["spec"], 1024))    # or None: widths in n
        d = vf.derive(net)
        for key, node in record["nodes"].items():       # key: NAME, or NAME:port after a split
            value, error = node["q"][:2]                # E[x^2] and its standard error
            value, error = node["gq"][:2]               # E[(dL/dx)^2] and its standard error

A record holds ``spec``, ``n``, ``samples`` (of one draw; they share its weights), ``draws``,
``seconds`` (of processor time) and ``nodes``. Each of ``mean``, ``q`` and ``gq`` is [value,
standard error, spread, peak]: the error comes from the variation between draws; ``spread`` is the
standard deviation of one draw's average, relative to the root of the second moment (``mean``) or
to the value itself; ``peak`` is the largest draw over the value (0 for ``mean``).

Conventions: averages run over the entries of a node's value; every port of every node that
nothing reads gets an independent standard normal cotangent; ``gq`` is the gradient with respect
to the node's value, summed over all that read it (so it is 1 at an output). Every port of a split
is read, or none is.

What to allow for:

- the error of the reference: compare |predicted - value| with a few standard errors, plus 1e-5 of
  the value for float32 (behind a normalization the standard error itself may be as good as zero);
- heavy tails: where ``spread`` exceeds 0.3 or ``peak`` 3 (``generate.heavy``), a few draws carry
  the average: the error is itself uncertain and the value tends to be too small. Batch norm of 4
  or 5 samples has gradients of infinite fourth moment, whose error no number of draws settles;
- finite width: values are those at this n, a wide limit differs by O(1/n). Where both files hold
  a graph, their difference over 3 estimates what is left of it at n = 1024.
"""
