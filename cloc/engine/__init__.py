"""Lightning module, optimizer, callbacks, run folder. The only folder that knows Lightning."""
