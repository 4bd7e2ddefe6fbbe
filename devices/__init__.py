if __name__ == "devices":
    raise ImportError("import edgekit.devices: this folder is a wing of the edgekit package, not a package of its own")
