"""The service: pages, JSON and live events of the runs below a directory; who may operate starts and stops them."""
