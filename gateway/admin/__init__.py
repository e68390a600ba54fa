"""The admin pages: rendered here, readable without JavaScript, with every figure and every change by the control API's handlers."""
