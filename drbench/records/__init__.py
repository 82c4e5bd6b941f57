"""Run folders: what a run wrote down, and whether it holds. No torch.

record       a run folder, written crash-safe and read back
leases       which process works on which images of it
examples     adversarial examples on disk
verify, verify_attack
             every certificate and every example, checked against its evidence
logs         logs of other projects as run folders, and the other way round
compact      a run as one Parquet file
"""
