"""A small Celery project: invoices in other currencies, added up in euros."""
