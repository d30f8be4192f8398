"""Operations: whatever reaches outside the store, as steps that survive a crash at any place."""
