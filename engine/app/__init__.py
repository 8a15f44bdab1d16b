"""Where concrete parts are named and put together; nothing below knows them."""
