"""What every area needs and no area owns: configuration, errors, files, processes, logs, the wire."""
