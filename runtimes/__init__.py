if __name__ == "runtimes":
    raise ImportError("import edgekit.runtimes: this folder is a wing of the edgekit package, not a package of its own")
