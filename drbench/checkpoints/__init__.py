"""Checkpoints of other projects, read without running anything in them, and converted once to safetensors.

===============  =========================================================================================
``formats``      names of formats, `convert` and `save`
``reading``      tensors of a `torch.save` or safetensors file; the report before a strict load
``classifiers``  CIFAR ResNets, wide ResNets, timm, transformers
``edm``          NVlabs/edm
``persistence``  network snapshots of NVlabs/edm, which are pickles of objects
``unpickling``   the restricted unpickler that these need
XXX
===============  =========================================================================================
"""
