"""What runs where the arrays are: on any device, for any leading axes, and under tracing.

Made of products, QR, SVD and inverses alone. The public functions of `ssmreduce` send arrays here that
should not move to the host, and take over what these modules refuse with `NoNativeRoute`.
"""
