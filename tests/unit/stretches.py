"""What is sent in tests of sending."""

import os

BODY = os.urandom(8 * 1024 * 1024)  # more than a socket takes at once
