if __name__ == "quantizers":
    raise ImportError(
        "import edgekit.quantizers: this folder is a wing of the edgekit package, not a package of its own"
    )
