"""Words that every part of batchmill shares: states, specs, parameters, names, errors and settings. No I/O."""
