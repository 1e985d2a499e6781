"""What the notebooks share: one idea a module, nothing imported before it is needed."""
