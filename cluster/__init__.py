"""The edge of the system: settings, application wiring, gateway, authentication, supervisor, client, command line."""
