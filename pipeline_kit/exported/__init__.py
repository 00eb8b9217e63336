"""Checkpoints as graphs of another runtime: exported once, compared with the network, kept sealed.

For models of plugins. This package knows no runtime: a plugin brings a
:class:`~pipeline_kit.exported.format.GraphFormat`, which writes a graph and loads it, and gets

- :func:`~pipeline_kit.exported.graphs.find_graph`: the graph of a checkpoint, from the cache or new, with what is
  known of it (:class:`~pipeline_kit.exported.facts.Facts`);
- :func:`~pipeline_kit.exported.running.answer`: a batch through that graph, as ``model=hf`` would answer it;
- :func:`~pipeline_kit.exported.cache.cached`: the same folders for what a plugin makes of a graph;
- :func:`~pipeline_kit.exported.needs.versions`: which packages are there, or the line that installs them.
"""
