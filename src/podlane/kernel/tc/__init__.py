"""Traffic control: token buckets that limit what a link sends, and the way for what it receives."""
