"""The application in a browser: a page, a websocket, and one process of the application per visitor."""
