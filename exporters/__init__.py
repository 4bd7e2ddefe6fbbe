if __name__ == "exporters":
    raise ImportError(
        "import edgekit.exporters: this folder is a wing of the edgekit package, not a package of its own"
    )
