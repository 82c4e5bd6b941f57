"""Checkpoints of other projects, read without running anything in them, and converted once to safetensors.

===============  =========================================================================================
``formats``      names of formats, `convert` and `save`
``reading``      tensors of a `torch.save` or safetensors file; the report before a strict load
``persistence``  network snapshots of NVlabs/edm, which are pickles of objects
===============  =========================================================================================
"""
