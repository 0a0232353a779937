"""The appliance's HTTP API and its page. Needs the extra ``serve``; nothing here is imported without it."""
