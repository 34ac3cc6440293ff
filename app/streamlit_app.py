"""The dashboard of moesim: `moesim app`, or `streamlit run app/streamlit_app.py`."""

from __future__ import annotations

import dash_state
import dash_ui
import streamlit as st

st.set_page_config(page_title="moesim", page_icon="🧭", layout="wide")
page = st.navigation(
    [
        st.Page("views/inputs.py", title="Inputs", url_path="inputs", default=True),
        st.Page("views/plan.py", title="Plan", url_path="plan"),
        st.Page("views/simulation.py", title="Simulation", url_path="simulation"),
        st.Page("views/compare.py", title="Compare", url_path="compare"),
        st.Page("views/what_if.py", title="What if", url_path="what-if"),
    ],
    position="top",
)
dash_state.begin()
dash_ui.look()
dash_ui.watch_jobs(page.title)
page.run()
dash_state.share()
