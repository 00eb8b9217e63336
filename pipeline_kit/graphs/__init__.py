"""Models that run exported graphs: the base of their stages, and the cache of graphs.

Promised: `GraphModel`, the stage to derive from; `Graph`, what it loads; `graph_inputs`, the tensors that it takes;
`silence`, which keeps an exporter's chatter off stdout and stderr.
"""

from pipeline_kit.graphs.cache import silence
from pipeline_kit.graphs.graphs import Graph, GraphModel, graph_inputs

__all__ = ["Graph", "GraphModel", "graph_inputs", "silence"]
