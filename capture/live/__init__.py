"""Live interfaces: the AF_PACKET ring of Linux, and scapy's sniffer where there is none.

What opens sockets (``packet_socket``, ``filters``, ``privileges``) imports the standard library only, so that every
capability can be dropped before numpy starts threads: a capability is dropped for one thread, not for a process.
"""
