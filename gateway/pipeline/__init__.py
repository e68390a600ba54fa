"""The path of a call: tag → authenticate → count → admit → reserve → forward → relay → settle → record."""
