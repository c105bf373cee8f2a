"""What runs inside a replica, and the Ray Serve application that runs it."""
