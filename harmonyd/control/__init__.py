"""The operator's side: supervisor's XML-RPC API for the stock ``supervisorctl``, log follow, management documents."""
