"""clusterports."""
