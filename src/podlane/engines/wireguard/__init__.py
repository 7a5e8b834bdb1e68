"""WireGuard without the kernel's: wireguard-go, its keys, its process, and the driver of both."""
