"""The core: how a delivery becomes an outcome."""
