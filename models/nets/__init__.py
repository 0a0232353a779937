"""Networks: the selective scan, the Mamba block, and the model families made of them."""
