"""The server around the application: processes, connections, refusal of malformed requests, whole answers in one write."""
