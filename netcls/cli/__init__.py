"""The command line. Importing it imports click and nothing heavy; each command imports what it runs on."""
