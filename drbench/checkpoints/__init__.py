"""Checkpoints of other projects, read without running anything in them, and converted once to safetensors.

formats      names of formats, `convert` and `save`
reading      tensors of a `torch.save` or safetensors file; the report before a strict load
classifiers  CIFAR ResNets, wide ResNets, timm, transformers
diffusers_folder
             folders of diffusers
adm, adm_keys
             OpenAI's UNets, and their names of tensors
edm          NVlabs/edm
persistence, unpickling
             its network snapshots, which are pickles of objects; the restricted unpickler that these need
scalars      numpy's numbers in a pickle
jax_consistency, flax
             JAX consistency models of CIFAR-10; trees of arrays, without JAX
"""
