"""Who may call what, and how much: keys and scopes, host names and origins, limits, and the record of who did what."""

from app.api.auth.access import Access, open_access
from app.api.auth.account import Account, account, tenant
from app.api.auth.audit import AuditLog
from app.api.auth.exposure import check_exposure
from app.api.auth.gate import Gatekeeper
from app.api.auth.scopes import OPEN_PATHS, ROUTES, Need, needed, route_of

__all__ = [
    "OPEN_PATHS",
    "ROUTES",
    "Access",
    "Account",
    "AuditLog",
    "Gatekeeper",
    "Need",
    "account",
    "check_exposure",
    "needed",
    "open_access",
    "route_of",
    "tenant",
]
