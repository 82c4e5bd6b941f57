"""Run folders: what a run wrote down, and whether it holds. No torch.

record       a run folder, written crash-safe and read back
shape        keys of its header on which readers rely
settings     what its header says of a config
leases       which process works on which images of it
examples     adversarial examples on disk
verify, verify_attack, verify_settings
             every certificate and every example, checked against its evidence; the header, against the config
logs         logs of other projects as run folders, and the other way round
compact      a run as one Parquet file
"""
