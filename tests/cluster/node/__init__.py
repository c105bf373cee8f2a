"""A Kubernetes node with pods that run, in namespaces of its own, on one machine.

``python -m tests.cluster.node up`` starts it by hand; tests use
:func:`tests.cluster.node.start.start`.
"""
