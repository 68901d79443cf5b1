"""Operations on whole images, one verb a file."""
