"""Words where a program should be."""


class Shop:
    def open(self)
        print "we are open"

    async def close(self):
        return None
