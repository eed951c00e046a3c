"""Random convolutional networks and their brute-force moments: a reference that shares nothing with
varflow's engine.

``generate`` makes seeded graphs as plain data, and builds them with ``vf.Network``; ``brute``
measures them in PyTorch with autograd; ``run`` writes ``results/measured.json``; ``deviations`` lists
what differs, with evidence. Only ``generate.network`` uses varflow, for its builder.

How to compare::

    from .generate import load_results, network

    for record in load_results():
        d = vf.derive(network(record["spec"], record["n"]))
        for key, node in record["nodes"].items():
            value, error = node["q"][:2]                # E[x^2] and its standard error
            value, error = node["gq"][:2]               # E[(dL/dx)^2] and its standard error

Records are those of ``tests.randomgraphs``; ``n`` is 128, or 512 for graphs that ``run.WIDE`` names.
Averages run over samples, channels and positions; every node that nothing reads gets an independent
standard normal cotangent at all its entries. ``samples`` is the batch of batch norms, else 2.

What to allow for: the error of the reference; finite width, O(1/n), where it is not negligible
against 3 %: normalizations over few channels above all.
"""
