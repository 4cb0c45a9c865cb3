"""Makes the modules beside this file (`support`) importable from every test folder."""
