# Options that make a system small, none of which the modules here depend on.
{ }
