"""``edge-infer archive``: scores every image of an archive through Ray Data, each content once.

Needs the extra ``[cluster]``. Only `edge.archive.cluster` imports Ray, and `edge.archive.output` Arrow.
"""
