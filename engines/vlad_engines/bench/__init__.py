"""How fast a policy is: on the device, in the process, and over the socket."""
