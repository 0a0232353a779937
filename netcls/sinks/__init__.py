"""Where events go. Each sink has its own bounded queue, so that one slow receiver never delays another."""
