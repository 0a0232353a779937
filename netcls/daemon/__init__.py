"""``netcls serve``: the appliance that runs for months. :mod:`netcls.daemon.appliance` is where to begin to read."""
