from hypothesis import settings

# a machine that is busy training must not fail a test that asks for correctness
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
