"""Classes of whole structures: residue tokens as features of networks on residues, trained by TorchMD-Net's trainer."""
