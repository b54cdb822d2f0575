"""The key management service: releases keys to apps that prove what they are."""
