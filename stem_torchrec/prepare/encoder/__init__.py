"""From raw values to ids, outside of preparing: what training was prepared with, for new rows."""
