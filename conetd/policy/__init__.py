"""What rules mean: which groups the kernel can look up fast, which rule decides a packet, how Garden writes them."""
